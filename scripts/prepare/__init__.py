"""Preparing data sets: what `python -m scripts.prepare_data` downloads, converts and writes.

published.py  MNIST, Fashion-MNIST, KMNIST, EMNIST, CIFAR-10: their files, read and checked
qmnist.py     QMNIST, from its files
download.py   fetches a file and verifies its SHA-256
builders.py   writes labeled images as a TFDS array_record folder
entries.py    the files of a folder or a tar file
layouts.py    which of them are images of which split and class
encode.py     resizes, crops and encodes one image
imagenet.py   writes imagenet_256, or a set of one's own, from such a list, in parallel
idx.py        a set of one's own from IDX files
table.py      what each split and class got
equal_images.py  which images are there twice
workers.py    its processes
"""
