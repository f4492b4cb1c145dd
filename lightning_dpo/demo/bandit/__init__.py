"""The package's losses on softmax bandits, whose optimum is known exactly."""
