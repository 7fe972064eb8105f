"""``python -m cbit``."""

import sys

from cbit.cli import main

sys.exit(main())
