"""How far a decomposition can be trusted: selectivity, matching of runs, concept search, baselines."""
