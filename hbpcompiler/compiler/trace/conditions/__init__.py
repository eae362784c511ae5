"""Ways that the user's code goes by values or by the batch's size: followed, noted or refused."""
