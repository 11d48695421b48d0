"""The in-context evaluator: a prompt under a softmax-attention network, and what is read off it."""
