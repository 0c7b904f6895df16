"""An example of a third-party Octavo plugin. The hooks are in :mod:`octavo_sample.plugin`."""
