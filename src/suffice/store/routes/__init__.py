"""Views of one route: active deployment, rollouts, experiments, counts."""
