"""Load on the real server: perf_analyzer beside our road, MLPerf's LoadGen, several servers."""
