"""Renamed to tools.bench.features."""

from tools.moved import answer

if __name__ == "__main__":
    answer("tools.bench_features", "tools.bench.features")
