"""Renamed to tools.bench.convert."""

from tools.moved import answer

if __name__ == "__main__":
    answer("tools.bench_convert", "tools.bench.convert")
