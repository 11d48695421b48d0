"""How near estimates come to the truth: scores, statistics with intervals, tables and figures."""
