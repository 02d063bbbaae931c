#include "fdstash.h"
