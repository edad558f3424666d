"""Where results are compared. Importing this package imports no tracking library; :mod:`.mlflow_tracker` does."""
