"""Preparing data sets: what `python -m scripts.prepare_data` downloads, converts and writes.

published.py  MNIST, Fashion-MNIST, KMNIST, EMNIST, CIFAR-10: their files, read and checked
qmnist.py     QMNIST, from its files
download.py   fetches a file and verifies its SHA-256
builders.py   writes labeled images as a TFDS array_record folder
layouts.py    lists the images of ImageNet's tar files, or of a class-per-folder tree
encode.py     resizes, crops and encodes one image
imagenet.py   writes imagenet_256 from such a list, in parallel
workers.py    its processes
progress.py   its progress bar
"""
