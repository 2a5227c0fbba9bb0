"""Comparisons: a suite becomes runs, runs become statistics, statistics become tables."""
