"""Renamed to tools.bench.startup."""

from tools.moved import answer

if __name__ == "__main__":
    answer("tools.bench_startup", "tools.bench.startup")
