"""Renamed to tools.bench.step."""

from tools.moved import answer

if __name__ == "__main__":
    answer("tools.bench_step", "tools.bench.step")
