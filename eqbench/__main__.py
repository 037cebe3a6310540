"""python -m eqbench."""

import sys

from eqbench.cli import main

sys.exit(main())
