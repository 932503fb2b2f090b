"""What each part of the method is worth: arms that differ in named fields, trained on the same data and compared."""
