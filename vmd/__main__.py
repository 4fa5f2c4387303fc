"""`python -m vmd`."""

import sys

from vmd.cli import main

sys.exit(main())
