"""Renamed to vit_registers.prepare."""

from tools.moved import answer

if __name__ == "__main__":
    answer("tools.prepare_data", "vit_registers.prepare")
