"""python -m imgtok.sample = the command line."""

import sys

from imgtok.sample.cli import main

sys.exit(main())
