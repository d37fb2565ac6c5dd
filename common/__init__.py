"""What both networks share."""

__version__ = "0.2.0"
