import sys

from common.launch import run_tool
from scripts.report import define_flags, main

sys.exit(run_tool(define_flags, main, sys.argv, ("[RUN ...]",)))
