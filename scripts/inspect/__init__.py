"""One HTML file about runs and studies: `python -m scripts.inspect`.

parts.py says what a report consists of. about.py, weights.py, examples.py, looked_at.py and
studied.py make parts of a run or a study; page.py writes them as HTML, slides.py as pictures.
"""
