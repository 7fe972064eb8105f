"""Why does a measurement not match?  A search over what usually goes wrong, with the value as the judge.

One bit of any input gives an unrelated digest, so a wrong value says nothing about its cause; only a value
that comes out right does.  So every usual cause is tried, alone and then together, until the value comes out
or the time is over.

Paper: launch-inputs.md §1–§3, §6, §7; sev-crypto.md §9.
"""

from cbit.owner.explain.alternatives import File
from cbit.owner.explain.direct import explain_direct
from cbit.owner.explain.reported import Digest, Measurement, Reported
from cbit.owner.explain.search import Explanation, explain

__all__ = ("Digest", "Explanation", "File", "Measurement", "Reported", "explain", "explain_direct")
