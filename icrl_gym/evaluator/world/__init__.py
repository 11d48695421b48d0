"""The world in context: a model of transitions and endings read off the prompt, and walks in it under the policy."""
