"""`python -m claudecluster.cli`: how a detached run starts its own server."""

from claudecluster.cli.main import entry

if __name__ == "__main__":
    entry()
