"""Renamed to tools.bench.input."""

from tools.moved import answer

if __name__ == "__main__":
    answer("tools.bench_input", "tools.bench.input")
