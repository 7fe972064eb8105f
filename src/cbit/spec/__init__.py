"""The paper as types: enumerations, wire structures, statuses, policies.  Standard library only."""
