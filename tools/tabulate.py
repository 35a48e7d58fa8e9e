"""Renamed to vit_registers.tabulate."""

from tools.moved import answer

if __name__ == "__main__":
    answer("tools.tabulate", "vit_registers.tabulate")
