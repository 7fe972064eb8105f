"""The lab's report: one page of HTML that needs nothing beside it."""
