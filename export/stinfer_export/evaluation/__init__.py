"""How well measured sections can be predicted from others: folds, baselines, agreement and their report."""
