"""Renamed to vit_registers.sweep."""

from tools.moved import answer

if __name__ == "__main__":
    answer("tools.sweep", "vit_registers.sweep")
