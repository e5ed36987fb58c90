"""`python -m claudecluster.cli`: how a detached run starts its own server."""

import sys

from claudecluster.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
