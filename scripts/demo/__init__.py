"""One HTML file in which a trained LeNet-5 reads what is drawn: `python -m scripts.demo`.

contents.py takes from a run what the page needs, page.py puts the file together. The network in
JavaScript is network.js, and normalize.js what comes before it; view.js shows the layers, and
main.js connects them with the drawing area and the controls.
"""
