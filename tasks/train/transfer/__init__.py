"""Starting from what was learnt before: a file of weights, the model that serves, or unlabelled images."""
