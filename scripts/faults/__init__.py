"""The fault campaign: what a run survives.

runs.py           the runs that faults are injected into, and one that nothing happens to
interruptions.py  SIGKILL, SIGTERM, SIGINT
damage.py         corrupt checkpoints
disk.py           file size limits and full disks
nonfinite.py      a loss that overflows
restarts.py       locked folders, time to resume, other numbers of devices
saving.py         what a save costs
campaign.py       the command: all of them, their rows and the file
"""
