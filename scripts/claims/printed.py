"""The table of LeNet-5 and Table I as the lecture deck prints them."""

# What the deck says of each layer; output: H, W, maps, or units.
# fmt: off
LENET = {
    "c1": dict(output=(28, 28, 6), kernel=(5, 5), stride=1, activation="tanh"),
    "s2": dict(output=(14, 14, 6), kernel=(2, 2), stride=2, activation="tanh"),
    "c3": dict(output=(10, 10, 16), kernel=(5, 5), stride=1, activation="tanh",
               parameters=1_516, connections=151_600),
    "s4": dict(output=(5, 5, 16), kernel=(2, 2), stride=2, activation="tanh"),
    "c5": dict(output=(1, 1, 120), kernel=(5, 5), stride=1, activation="tanh"),
    "f6": dict(output=(84,), activation="tanh"),
    "output": dict(output=(10,), activation="softmax"),
}
# fmt: on

# The connections of each S2 map to the 16 maps of C3.
LENET_TABLE_1 = (
    "X  XXX  XXXX XX ",
    "XX  XXX  XXXX X ",
    "XXX  XXX X XXXX ",
    " XXX XXXX X XXX ",
    " XXX XXXX XX XX ",
    " XXX XXXX XXX X ",
)
