"""A third party's plug-ins. They use `claudecluster.model` and `claudecluster.ports`, and know nothing else of the product."""
