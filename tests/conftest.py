"""Lets tests import each other's helpers (`from tests import ...`)."""

import sys
from pathlib import Path


# Last: an installed higgs_native is tested, not the sources beside the tests, which hold no compiled operators.
sys.path.append(str(Path(__file__).resolve().parent.parent))
