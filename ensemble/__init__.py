"""Build ensembles from what a search kept. Works without ray and optuna."""
