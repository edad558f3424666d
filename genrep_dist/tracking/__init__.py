"""Publishes results to MLflow. Importing this package imports no tracking library; :mod:`.mlflow_tracker` does."""
