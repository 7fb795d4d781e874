/* The C interface: finds instances in a binary PPM and prints them, one a line. */
#include <stdio.h>
#include <stdlib.h>

#include <yolact_deploy/yolact.h>

/* RGB rows of a P6 file of 255 levels without comments; null where it is none. */
static unsigned char *read_ppm(const char *path, int *width, int *height) {
    FILE *file = fopen(path, "rb");
    unsigned char *pixels = NULL;
    int levels = 0;
    if (!file) return NULL;
    if (fscanf(file, "P6 %d %d %d", width, height, &levels) == 3 && levels == 255 && *width > 0 && *height > 0 && *width < 32768 && *height < 32768) {
        size_t size = (size_t)*width * (size_t)*height * 3;
        fgetc(file);
        pixels = malloc(size);
        if (pixels && fread(pixels, 1, size, file) != size) {
            free(pixels);
            pixels = NULL;
        }
    }
    fclose(file);
    return pixels;
}

int main(int count, char **texts) {
    yolact_options options = YOLACT_OPTIONS_DEFAULT;
    yolact_detector *detector = NULL;
    yolact_results *results = NULL;
    yolact_image image = {sizeof image, NULL, 0, 0, 0, YOLACT_RGB, YOLACT_HOST, NULL, 0};
    unsigned char *pixels;
    int code;
    if (count != 3) {
        fprintf(stderr, "usage: detect_in_c ENGINE PICTURE.ppm\n");
        return 2;
    }
    pixels = read_ppm(texts[2], &image.width, &image.height);
    if (!pixels) {
        fprintf(stderr, "detect_in_c: %s is no binary PPM.\n", texts[2]);
        return 1;
    }
    image.data = pixels;
    code = yolact_load(texts[1], &options, &detector);
    if (!code) code = yolact_detect(detector, &image, 1, NULL, &results);
    if (code) {
        fprintf(stderr, "detect_in_c: %s\n", yolact_last_error());
    } else {
        size_t index, found = yolact_count(results, 0);
        for (index = 0; index < found; ++index) {
            yolact_detection one = {0};
            one.size = sizeof one;
            if (yolact_get(results, 0, index, &one)) break;
            printf("%s %.3f at %.0f,%.0f to %.0f,%.0f, mask of %zu bytes\n", yolact_class_name(detector, one.label), (double)one.score,
                   (double)one.x1, (double)one.y1, (double)one.x2, (double)one.y2, one.rle_length);
        }
    }
    yolact_results_free(results);
    yolact_free(detector);
    free(pixels);
    return code ? 1 : 0;
}
