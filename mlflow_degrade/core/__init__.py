"""What every room needs: errors, the cache, YAML files, numbers, progress and redaction."""
