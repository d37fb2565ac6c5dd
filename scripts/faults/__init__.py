"""The fault campaign: what a run survives.

runs.py           the runs that faults are injected into, and one that nothing happens to
interruptions.py  SIGKILL, and the signals that save and stop
damage.py         corrupt checkpoints
disk.py           file size limits and full disks, for good or for the time of a save
nonfinite.py      a loss that overflows
restarts.py       locked folders, time to resume, other numbers of devices
saving.py         what a save costs
messages.py       stdout and stderr that cannot be written
paths.py          odd names of folders
stranger.py       checkpoints that were made to harm
releases.py       run folders of older versions
data.py           labels in another order, overlapping splits, sources with more than classes
environment.py    variables, users, locales, limits of memory
__main__.py       the command: all of them, their rows and the file
"""
