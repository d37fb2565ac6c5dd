"""`python -m scripts.faults`: see campaign.py."""

import sys

from common import launch
from scripts.faults import campaign

if __name__ == "__main__":
    sys.exit(launch.run_tool(campaign.define_flags, campaign.main, sys.argv))
