"""Models of other libraries with random weights, and their outputs beside ours: tools/parity_table.py."""
