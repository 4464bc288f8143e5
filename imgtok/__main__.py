"""python -m imgtok = the command line."""

import sys

from imgtok.sample.cli import main

sys.exit(main())
