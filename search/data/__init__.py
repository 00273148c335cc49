"""From a folder of images and a table to batches on the device."""
