"""The ledger: what the lecture deck and the two papers state, beside what this project has.

claim.py    what a claim is, and the kinds of them
facts.py    what claims are checked against: the live modules and results/
printed.py  the tables of the deck
deck.py, lenet.py, lenet_training.py, alexnet.py, alexnet_training.py, studied.py,
alexnet_errors.py
            the claims: tables, one row each, below what computes ours
ledger.py   all of them, checked
"""
