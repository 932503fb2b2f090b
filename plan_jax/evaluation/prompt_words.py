"""The words of the zero-shot prompts (`plan_jax.evaluation.prompts` says whose they are)."""

# Class -> the parts of its prompts, in the order in which GLoRIA joins them; "" is none.
CHEXPERT_5X200 = {
    "Atelectasis": (
        ("", "mild", "minimal"),
        (
            "subsegmental atelectasis",
            "linear atelectasis",
            "trace atelectasis",
            "bibasilar atelectasis",
            "retrocardiac atelectasis",
            "bandlike atelectasis",
            "residual atelectasis",
        ),
        (
            "at the mid lung zone",
            "at the upper lung zone",
            "at the right lung zone",
            "at the left lung zone",
            "at the lung bases",
            "at the right lung base",
            "at the left lung base",
            "at the bilateral lung bases",
            "at the left lower lobe",
            "at the right lower lobe",
        ),
    ),
    "Cardiomegaly": (
        (
            "cardiac silhouette size is upper limits of normal",
            "cardiomegaly which is unchanged",
            "mildly prominent cardiac silhouette",
            "portable view of the chest demonstrates stable cardiomegaly",
            "portable view of the chest demonstrates mild cardiomegaly",
            "persistent severe cardiomegaly",
            "heart size is borderline enlarged",
            "cardiomegaly unchanged",
            "heart size is at the upper limits of normal",
            "redemonstration of cardiomegaly",
            "ap erect chest radiograph demonstrates the heart size is the upper limits of normal",
            "cardiac silhouette size is mildly enlarged",
            "mildly enlarged cardiac silhouette, likely left ventricular enlargement. "
            "other chambers are less prominent",
            "heart size remains at mildly enlarged",
            "persistent cardiomegaly with prominent upper lobe vessels",
        ),
    ),
    "Consolidation": (
        ("", "increased", "improved", "appearance of"),
        (
            "bilateral consolidation",
            "reticular consolidation",
            "retrocardiac consolidation",
            "patchy consolidation",
            "airspace consolidation",
            "partial consolidation",
        ),
        (
            "at the lower lung zone",
            "at the upper lung zone",
            "at the left lower lobe",
            "at the right lower lobe",
            "at the left upper lobe",
            "at the right upper lobe",
            "at the right lung base",
            "at the left lung base",
        ),
    ),
    "Edema": (
        ("", "mild", "improvement in", "persistent", "moderate", "decreased"),
        ("pulmonary edema", "trace interstitial edema", "pulmonary interstitial edema"),
    ),
    "Pleural Effusion": (
        ("", "small", "stable", "large", "decreased", "increased"),
        ("left", "right", "tiny"),
        ("bilateral pleural effusion", "subpulmonic pleural effusion"),
    ),
}

# Class of any other data set -> its prompts.
NAMES = {
    # RSNA, SIIM-ACR and COVIDx
    "pneumonia": ("pneumonia", "findings of pneumonia", "opacity that is concerning for pneumonia"),
    "pneumothorax": ("pneumothorax", "there is a pneumothorax", "collapsed lung with air in the pleural space"),
    "normal": ("normal chest radiograph", "the lungs are clear", "no acute cardiopulmonary abnormality"),
    "COVID-19": (
        "covid-19 pneumonia",
        "viral pneumonia with bilateral peripheral opacities",
        "patchy ground glass opacities in both lungs",
    ),
    # CheXpert, MIMIC-CXR, MS-CXR and NIH ChestX-ray14
    "Atelectasis": ("there is atelectasis", "there is volume loss with linear opacity"),
    "Cardiomegaly": ("there is cardiomegaly", "the heart is enlarged"),
    "Consolidation": ("there is consolidation", "there is airspace consolidation"),
    "Edema": ("there is pulmonary edema", "there is vascular congestion with interstitial edema"),
    "Effusion": ("there is a pleural effusion", "there is pleural fluid"),
    "Emphysema": ("there is emphysema", "the lungs are hyperinflated with flattened diaphragms"),
    "Enlarged Cardiomediastinum": ("the cardiomediastinal silhouette is enlarged", "the mediastinum is widened"),
    "Fibrosis": ("there is fibrosis", "there is fibrotic scarring of the lung"),
    "Fracture": ("there is a fracture", "there is a rib fracture"),
    "Hernia": ("there is a hernia", "there is a hiatal hernia"),
    "Infiltration": ("there is an infiltrate", "there is infiltration of the lung"),
    "Lung Lesion": ("there is a lung lesion", "there is a lung nodule or mass"),
    "Lung Opacity": ("there is an opacity in the lung", "there is lung opacity"),
    "Mass": ("there is a mass", "there is a lung mass"),
    "No Finding": ("no acute cardiopulmonary abnormality", "the lungs are clear and the heart is of normal size"),
    "Nodule": ("there is a nodule", "there is a pulmonary nodule"),
    "Pleural Effusion": ("there is a pleural effusion", "there is pleural fluid"),
    "Pleural Other": ("there is a pleural abnormality", "there is pleural scarring"),
    "Pleural Thickening": ("there is pleural thickening", "the pleura is thickened"),
    "Pneumonia": ("there is pneumonia", "there is an opacity that is concerning for pneumonia"),
    "Pneumothorax": ("there is a pneumothorax", "there is air in the pleural space"),
    "Support Devices": ("there are support devices", "there is a tube, line or other device"),
}
