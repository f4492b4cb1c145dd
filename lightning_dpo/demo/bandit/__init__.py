"""Theory as runs: the package's own losses on softmax bandits, where the optimum is known exactly."""
